"""The sandbox of chat templates, which come with checkpoints from untrusted sources.

Jinja's sandbox keeps a template from Python's internals, but not from using unlimited time and memory. This sandbox
also gives each rendering a budget of steps and characters. The budget is counted, not timed, so a template fails on
every machine or on none. A step is one iteration of a loop, one call, filter, test or arithmetic operation; its
characters are those that it reads and writes, estimated before it runs. Output counts too, including output in macros
and `set` blocks.

The budget covers neither the choices of `random` nor the time to compile a template of `MAX_SOURCE_CHARS`, which is a
few seconds at worst.
"""

import datetime
import functools
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from llm.errors import ChatTemplateError
from llm.tokenization.chat_cost import MAX_CHARS, OPERATIONS, call_size, filter_size, format_size, size_of, with_lists

MAX_STEPS = 1_000_000
MAX_SOURCE_CHARS = 2**18
MAX_ERROR_CHARS = 1000

# Names of the counting nodes; no template can contain these names.
_STEP, _READ, _SEARCH, _CONCAT = " step", " read", " search", " concat"

# String methods with results no longer than the string, and methods with their own estimate below.
_TEXT_METHODS = frozenset(
    (
        *("capitalize", "casefold", "count", "endswith", "find", "index", "lower", "lstrip", "partition"),
        *("removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
        *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
        *("isprintable", "isspace", "istitle", "isupper", "startswith", "strip", "swapcase", "title", "upper"),
        *("center", "format", "format_map", "join", "ljust", "replace", "rjust", "zfill"),
    )
)
# The cost of a macro call or a recursive loop call, in other steps.
_BODY_STEPS = 4

# Arguments that compiled templates add to a call.
_PASSED_BY_JINJA = ("_loop_vars", "_block_vars")

# Functions that no chat template needs and that produce large results from small input.
_LEFT_OUT = ("urlize", "wordwrap")


class _BudgetError(SecurityError):
    """A template exceeded the budget of a rendering."""


class _RefusedError(jinja2.TemplateError):
    """The error that a template raises through `raise_exception`."""


class _Rendering:
    """The remaining budget of one rendering, and the marks that it writes around `{% generation %}` blocks."""

    __slots__ = ("chars_left", "marks", "steps_left")

    def __init__(self, marks: tuple[str, str]) -> None:
        self.steps_left = MAX_STEPS
        self.chars_left = MAX_CHARS
        self.marks = marks

    def spend(self, chars: int = 0, steps: int = 1) -> None:
        self.steps_left -= steps
        self.chars_left -= chars
        if self.steps_left < 0:
            raise _BudgetError(f"it takes more than {MAX_STEPS:,} steps")
        if self.chars_left < 0:
            raise _BudgetError(f"it handles more than {MAX_CHARS:,} characters")


_rendering: ContextVar[_Rendering] = ContextVar("_rendering")


def render_template(source: str, variables: Mapping[str, Any], *, marks: tuple[str, str] = ("", "")) -> str:
    """Returns the text that a template renders from `variables`, which must contain only plain JSON values.

    Args:
        source: The template, in Jinja with the extensions of `transformers`.
        variables: Variables of the template.
        marks: Texts to write before and after the text of each `{% generation %}` block.

    Raises:
        ChatTemplateError: The template is invalid, fails, rejects the conversation, tries to leave its sandbox or
            exceeds its budget.
    """
    template = compile_template(source)
    token = _rendering.set(_Rendering(marks))
    try:
        return template.render(variables)
    except SecurityError as error:
        raise ChatTemplateError(f"the chat template tried what its sandbox forbids: {_brief(error)}") from error
    except _RefusedError as error:
        raise ChatTemplateError(f"the chat template refused this conversation: {_brief(error)}") from error
    except Exception as error:
        raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {_brief(error)}") from error
    finally:
        _rendering.reset(token)


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """Returns a compiled template.

    Raises:
        ChatTemplateError: The template is not valid Jinja, or too long.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise ChatTemplateError(
            f"a chat template must have at most {MAX_SOURCE_CHARS:,} characters, got {len(source):,}"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
        ) from error
    except Exception as error:
        raise ChatTemplateError(f"the chat template is not valid: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=32)
def has_generation_blocks(source: str) -> bool:
    """Returns whether a valid template marks the assistant's text with `{% generation %}` blocks."""
    calls = (block.call.node for block in _environment().parse(source).find_all(nodes.CallBlock))
    return any(isinstance(called, nodes.ExtensionAttribute) for called in calls)


@functools.lru_cache(maxsize=32)
def reads_variable(source: str, name: str) -> bool:
    """Returns whether a template names a variable.

    Raises:
        ChatTemplateError: The template is not valid Jinja, or too long.
    """
    compile_template(source)
    return any(node.name == name for node in _environment().parse(source).find_all(nodes.Name))


class _GenerationBlock(Extension):
    """Adds `{% generation %}…{% endgeneration %}`, with which a template marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    def marked(self, caller: Callable[[], str]) -> str:
        before, after = _rendering.get().marks
        return before + caller() + after


class _Counting(NodeTransformer):
    """Adds counting to the nodes of a parsed template that don't run through counted calls or arithmetic."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 -- the name Jinja looks for
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(True), _STEP, node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _CONCAT, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _read(node.expr)
        for operand in node.ops:
            operand.expr = _read(operand.expr, _SEARCH if operand.op in ("in", "notin") else _READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(node.node, _READ, node)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _read(node.key)
        return node


def _filter(value: nodes.Expr, name: str, near: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=near.lineno)


def _step_statement(near: nodes.Node) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filter(nodes.Const(True), _STEP, near), lineno=near.lineno)


def _read(value: nodes.Expr, how: str = _READ) -> nodes.Expr:
    return value if isinstance(value, nodes.Const) else _filter(value, how, value)


class _RuntimeCodeGenerator(CodeGenerator):
    """Defers constant folding to the rendering, because work done while compiling isn't counted."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> NoReturn:
        del node, frame, finalize
        raise nodes.Impossible


class _Environment(ImmutableSandboxedEnvironment):
    """The Jinja environment of templates on the Hugging Face hub, with each step counted."""

    code_generator_class = _RuntimeCodeGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _Counting().visit(source)
        return super()._generate(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        return attr not in ("to_bytes", "from_bytes") and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            _rendering.get().spend(size_of(argument))
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _rendering.get().spend(OPERATIONS[operator](left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        args = with_lists(args) if getattr(obj, "__name__", "") == "join" else args
        if isinstance(obj, Macro | LoopContext):
            _rendering.get().spend(steps=_BODY_STEPS)
        else:
            own = {name: value for name, value in kwargs.items() if name not in _PASSED_BY_JINJA}
            _rendering.get().spend(call_size(obj, args, own))
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @functools.wraps(formatted)
        def counted(*args: Any, **kwargs: Any) -> str:
            _rendering.get().spend(format_size(value.__self__, (*args, *kwargs.values())))
            return formatted(*args, **kwargs)

        return counted


class _Dict:
    """A `dict` constructor without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's namespace without private names, which could fake other types, and with a short `repr`."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `*args` allows `self` as a name in the namespace.
        own, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"names in a namespace must not begin with an underscore, got {name!r}")


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        finalize=_was_read,
        optimized=False,
    )
    environment.filters["tojson"] = _to_json
    for name in _LEFT_OUT:
        del environment.filters[name]
    for table in (environment.filters, environment.tests):
        functions = cast(dict[str, Callable[..., Any]], table)
        functions.update({name: _counted(name, function) for name, function in functions.items()})
    environment.filters.update({_STEP: _stepped, _READ: _was_read, _SEARCH: _was_searched, _CONCAT: _concatenated})
    del environment.globals["lipsum"]
    environment.globals.update(
        dict=_Dict(), namespace=_Namespace, raise_exception=_raise_exception, strftime_now=_strftime_now
    )
    return environment


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter or test that counts its estimated cost before it runs."""
    size = filter_size(name)
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        passed, own = args[:first], args[first:]
        own = with_lists(own) if name == "join" else own
        _rendering.get().spend(size(*own, **kwargs))
        return function(*passed, *own, **kwargs)

    return counted


def _stepped(value: Any) -> Any:
    _rendering.get().spend()
    return value


def _was_read(value: Any) -> Any:
    _rendering.get().spend(size_of(value))
    return value


def _was_searched(value: Any) -> Any:
    _rendering.get().spend(0 if isinstance(value, dict) else size_of(value))
    return value


@jinja2.pass_eval_context
def _concatenated(context: nodes.EvalContext, values: list[Any]) -> str:
    _rendering.get().spend(size_of(values))
    return markup_join(values) if context.autoescape else str_join(values)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns a value as JSON without the HTML escapes of Jinja's own filter, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _brief(error: Exception) -> str:
    """Returns a shortened error message, because a template can make its text very long."""
    return str(error)[:MAX_ERROR_CHARS]


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(format_: str) -> str:
    return datetime.datetime.now().astimezone().strftime(format_)
