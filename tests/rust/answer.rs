//! Tests of `llm_core::answer`.

mod every_split;

use llm_core::answer::{AnswerParser, FORMATS, Format, Kind, Part, Setup};

pub fn setup(format: &str) -> Setup {
    let format = Format::named(format);
    Setup { reasoning: Some(("<think>".to_owned(), "</think>".to_owned())), format, ..Setup::default() }
}

pub fn with_tools(format: &str, tools: &[(&str, &[(&str, &str)])]) -> Setup {
    let types = |types: &[(&str, &str)]| types.iter().map(|&(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    let tools = tools.iter().map(|&(name, parameters)| (name.to_owned(), types(parameters))).collect();
    Setup { tools, ..setup(format) }
}

pub fn parsed(setup: Setup, pieces: &[&str]) -> Vec<Part> {
    let mut parser = AnswerParser::new(setup).expect("the setup is valid");
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    joined(parts)
}

/// The parts with adjacent ones of a kind joined.
pub fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut found: Vec<Part> = Vec::new();
    for part in parts {
        match found.last_mut() {
            Some(last) if last.kind == part.kind && last.call == part.call && part.kind != Kind::Call => {
                last.text.push_str(&part.text);
            }
            _ => found.push(part),
        }
    }
    found
}

/// Parts in short: text, `?reasoning`, `name(arguments)`.
fn short(parts: &[Part]) -> String {
    let mut found = String::new();
    for part in parts {
        match part.kind {
            Kind::Text => found.push_str(&format!("[{}]", part.text)),
            Kind::Reasoning => found.push_str(&format!("?[{}]", part.text)),
            Kind::Call => found.push_str(&format!("{}:", part.text)),
            Kind::Arguments => found.push_str(&part.text),
        }
    }
    found
}

#[track_caller]
fn assert_parts(setup: Setup, answer: &str, expected: &str) {
    assert_eq!(short(&parsed(setup, &[answer])), expected, "{answer}");
}

const CALL: &str = r#"{"name": "f", "arguments": {"x": [1, "}"]}}"#;

#[test]
fn every_format_reads_its_calls() {
    let cases = [
        ("hermes", format!("<tool_call>\n{CALL}\n</tool_call>"), r#"f:{"x": [1, "}"]}"#),
        ("hermes", format!("<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>"), r#"f:{"x": [1, "}"]}f:{"x": [1, "}"]}"#),
        (
            "qwen_coder",
            "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n<parameter=y>\nno \"end\"\n\n</parameter>\n\
             </function>\n</tool_call>"
                .to_owned(),
            r#"f:{"x": 1, "y": "no \"end\"\n"}"#,
        ),
        ("qwen_coder", "<function=f>\n</function>".to_owned(), "f:{}"),
        ("llama3_json", r#"{"name": "f", "parameters": {"a": null}}"#.to_owned(), r#"f:{"a": null}"#),
        ("llama3_json", r#"<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}"#.to_owned(), "f:{}g:{}"),
        (
            "llama4_pythonic",
            r#"[f(a=1, b='it\'s "so"', c=[True, None, (1.,)], d={'k': {2: -.5},}), g()]"#.to_owned(),
            r#"f:{"a": 1, "b": "it's \"so\"", "c": [true, null, [1.0]], "d": {"k": {"2": -0.5}}}g:{}"#,
        ),
        ("llama4_pythonic", r#"<|python_start|>[f(a="\u00e9\x41\n\ud83d\ude00")]<|python_end|>"#.to_owned(), r#"f:{"a": "éA\n😀"}"#),
        ("mistral", format!("[TOOL_CALLS] [{CALL}]"), r#"f:{"x": [1, "}"]}"#),
        ("mistral", r#"[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]123[ARGS]{}"#.to_owned(), r#"f:{"a": 1}g:{}"#),
        ("mistral", r#"[TOOL_CALLS]f{"a": 1}"#.to_owned(), r#"f:{"a": 1}"#),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>\
             g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
                .to_owned(),
            r#"f:{"a": 1}g:{}"#,
        ),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n\
             <｜tool▁calls▁end｜>"
                .to_owned(),
            r#"f:{"a": 1}"#,
        ),
        ("json", CALL.to_owned(), r#"f:{"x": [1, "}"]}"#),
        ("json", format!("[{CALL}, {CALL}]"), r#"f:{"x": [1, "}"]}f:{"x": [1, "}"]}"#),
    ];
    for (format, answer, expected) in cases {
        assert_parts(setup(format), &answer, expected);
    }
}

#[test]
fn text_around_calls_stays_without_the_white_space_next_to_them() {
    let call = format!("<tool_call>\n{CALL}\n</tool_call>");
    assert_parts(
        setup("hermes"),
        &format!("  Sure. \n\n{call}\n\n Done. \n"),
        "[  Sure.]f:{\"x\": [1, \"}\"]}[Done. \n]",
    );
    assert_parts(setup("hermes"), "1 < 2 and <tool_cal", "[1 < 2 and <tool_cal]");
    assert_parts(setup("hermes"), "a</tool_call>b", "[a</tool_call>b]");
    assert_parts(Setup::default(), &call, &format!("[{call}]"));
}

#[test]
fn reasoning_is_split_off_the_beginning_only() {
    let mut opened = setup("hermes");
    opened.starts_in_reasoning = true;
    assert_parts(setup("json"), "<think>\nHm. \n</think>\n\nYes <think>", "?[Hm.][Yes <think>]");
    assert_parts(setup("json"), "Use <think>x</think>", "[Use <think>x</think>]");
    assert_parts(opened.clone(), "Hm.\n</think>\n\nYes.", "?[Hm.][Yes.]");
    assert_parts(opened.clone(), "<think>Hm.</think>Yes.", "?[Hm.][Yes.]");
    assert_parts(opened.clone(), "never </thin", "?[never </thin]");
    assert_parts(opened, &format!("Hm.</think><tool_call>{CALL}</tool_call>"), r#"?[Hm.]f:{"x": [1, "}"]}"#);
    assert_parts(
        setup("json"),
        &format!("<think>{CALL}</think>\n{CALL}"),
        &format!(r#"?[{CALL}]f:{{"x": [1, "}}"]}}"#),
    );
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        r#"{"name": "Ann", "age": 3}"#,
        r#"{"answer": {"name": "f", "arguments": {}}}"#,
        "[1] a footnote",
        "{ unfinished",
        "",
        " \n ",
    ] {
        let expected = if answer.is_empty() { String::new() } else { format!("[{answer}]") };
        assert_parts(setup("json"), answer, &expected);
        assert_parts(setup("llama3_json"), answer, &expected);
        assert_parts(setup("llama4_pythonic"), answer, &expected);
    }
    for answer in ["<tool_call>not JSON</tool_call>", "<tool_call>{\"name\": 3}", "<tool_call>\n{\"name\": \"f"] {
        assert_parts(setup("hermes"), answer, &format!("[{answer}]"));
        assert_parts(setup("qwen_coder"), answer, &format!("[{answer}]"));
    }
    assert_parts(setup("llama4_pythonic"), "[f(x)]", "[[f(x)]]");
    assert_parts(setup("mistral"), "[TOOL_CALLS]f(1)", "[[TOOL_CALLS]f(1)]");
    assert_parts(setup("hermes"), &format!("<tool_call>?<tool_call>{CALL}"), r#"[<tool_call>?]f:{"x": [1, "}"]}"#);
}

#[test]
fn without_markers_only_known_functions_are_called() {
    let tools = || with_tools("json", &[("g", &[])]);
    assert_parts(tools(), CALL, &format!("[{CALL}]"));
    assert_parts(tools(), r#"{"name": "g"}"#, "g:{}");
    assert_parts(with_tools("llama4_pythonic", &[("g", &[])]), "[f(), g()]", "[[f(), g()]]");
    assert_parts(with_tools("hermes", &[("g", &[])]), &format!("<tool_call>{CALL}"), r#"f:{"x": [1, "}"]}"#);
}

#[test]
fn unusual_arguments_are_arguments() {
    let cases = [
        (r#"{"name": "f"}"#, "f:{}"),
        (r#"{"name": "f", "arguments": null}"#, "f:{}"),
        (r#"{"arguments": {"a": "\"}"}, "name": "f"}"#, r#"f:{"a": "\"}"}"#),
        (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, r#"f:{"a": 1}"#),
        (r#"{"type": "function", "function": {"name": "f", "arguments": {}}}"#, "f:{}"),
        (r#"{"name": "f", "arguments": {"a": 1}"#, r#"f:{"a": 1}"#),
        (r#"{"name": "f", "arguments": }"#, "f:{}"),
        (r#"{"name": "f", "arguments": {"a": oops}}"#, r#"f:{"a": oops}"#),
    ];
    for (answer, expected) in cases {
        assert_parts(setup("hermes"), &format!("<tool_call>{answer}</tool_call>"), expected);
    }
    let cut = r#"<tool_call>{"name": "f", "arguments": {"a": "cut"#;
    assert_parts(setup("hermes"), cut, r#"f:{"a": "cut"#);
}

#[test]
fn values_without_types_become_what_their_function_declares() {
    let answer = "<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=b>\n5\n</parameter>\n<parameter=c>True\
                  </parameter>\n<parameter=d>x <b</parameter></function>";
    let tools = with_tools("qwen_coder", &[("f", &[("a", "string"), ("b", "integer")])]);
    assert_parts(tools, answer, r#"f:{"a": "5", "b": 5, "c": true, "d": "x <b"}"#);
}

#[test]
fn bad_setups_are_named() {
    let problem = |setup: Setup| AnswerParser::new(setup).unwrap_err().to_string();
    let empty = Setup { reasoning: Some((String::new(), "x".to_owned())), ..Setup::default() };
    assert!(problem(empty).contains("`reasoning` markers must not be empty"));
    let without = Setup { starts_in_reasoning: true, ..Setup::default() };
    assert!(problem(without).contains("`starts_in_reasoning` needs `reasoning` markers"));
    assert_eq!(FORMATS.iter().filter(|format| Format::named(format.name).is_some()).count(), FORMATS.len());
}
