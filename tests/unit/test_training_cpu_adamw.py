"""AdamW's own kernel beside PyTorch's."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm._rust import AdamW as Kernel
from llm.errors import InvalidArgumentError
from llm.models import ForwardContext, Targets, positions_of
from llm.settings.run import OptimizerConfig
from llm.training import LanguageModelingTask
from llm.training.allocator import lasting_zeros
from llm.training.optim import build_optimizer, clip_gradients, set_learning_rate
from llm.training.optim.cpu_adamw import CpuAdamW
from tests.unit.training_samples import MODEL


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LanguageModelingTask(MODEL).build_model()


def with_gradients(model: nn.Module, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)


def twin_of(optimizer: torch.optim.Optimizer, own: nn.Module, model: nn.Module) -> torch.optim.AdamW:
    """PyTorch's AdamW over the parameters of a copy of the model."""
    copies = dict(zip(own.parameters(), model.parameters(), strict=True))
    groups = [group | {"params": [copies[one] for one in group["params"]]} for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, fused=True)


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(1e-6, 1e3),
    max_norm=st.one_of(st.none(), st.floats(1e-3, 10.0)),
    rate=st.floats(1e-5, 1e-1),
    decay=st.floats(0.0, 0.5),
    beta2=st.floats(0.9, 0.999),
    seed=st.integers(0, 2**16),
)
def test_steps_are_those_of_pytorch(
    scale: float, max_norm: float | None, rate: float, decay: float, beta2: float, seed: int
) -> None:
    """Weights agree to 2e-6 of themselves plus 6e-6 learning rates and 1e-7; moments to 1e-5."""
    own = a_model(seed)
    model = copy.deepcopy(own)
    optimizer = build_optimizer(own, OptimizerConfig(weight_decay=decay, beta2=beta2))
    assert isinstance(optimizer, CpuAdamW)
    twin = twin_of(optimizer, own, model)
    for step in range(3):
        for one, parts in ((optimizer, own), (twin, model)):
            with_gradients(parts, scale, seed + step)
            set_learning_rate(one, rate)
            norm = clip_gradients(one, tuple(parts.parameters()), max_norm)
            assert norm == pytest.approx(scale * sum(p.numel() for p in parts.parameters()) ** 0.5, rel=0.1)
            one.step()
    for mine, theirs in zip(own.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=6e-6 * rate + 1e-7)
        kept, known = optimizer.state[mine], twin.state[theirs]
        assert kept.keys() == known.keys()
        assert all(kept[name].shape == known[name].shape and kept[name].dtype == known[name].dtype for name in kept)
        assert kept["step"] == known["step"] == 3
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(kept[name], known[name], rtol=1e-5, atol=1e-6 * float(known[name].abs().max()))


def test_bits_are_the_same_with_every_number_of_threads() -> None:
    found = []
    for threads in (1, 3):
        model, before = a_model(), torch.get_num_threads()
        optimizer = build_optimizer(model, OptimizerConfig())
        torch.set_num_threads(threads)
        try:
            with_gradients(model, 1.0, 1)
            norm = clip_gradients(optimizer, tuple(model.parameters()), 1.0)
            optimizer.step()
        finally:
            torch.set_num_threads(before)
        found.append((norm, [parameter.detach().clone() for parameter in model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_parameters_without_gradients_and_with_new_memory_are_heeded() -> None:
    model = a_model()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.0))
    first, *others = model.parameters()
    with_gradients(model, 1.0, 0)
    first.grad = None
    before = first.detach().clone()
    optimizer.step()
    assert torch.equal(first, before)
    assert first not in optimizer.state
    assert {int(optimizer.state[one]["step"]) for one in others} == {1}
    first.data = first.detach().clone()
    with_gradients(model, 1.0, 0)
    optimizer.step()
    assert not torch.equal(first, before)
    assert (int(optimizer.state[first]["step"]), int(optimizer.state[others[0]]["step"])) == (1, 2)


def test_gradients_kept_in_bf16_are_those_of_fp32() -> None:
    """Each is the result of one product in bf16, so nothing is lost: losses, weights and moments are the same bits."""
    found = []
    for is_one_pass in (False, True):
        model = a_model().train()
        optimizer = build_optimizer(model, OptimizerConfig(), torch.bfloat16, is_one_pass=is_one_pass)
        for step in range(2):
            ids = (torch.arange(24) + step) % MODEL.vocab_size
            context = ForwardContext.for_sequences((14, 10), targets=Targets(ids.roll(-1), is_summed=True))
            with torch.autocast("cpu", torch.bfloat16):
                loss = -model(ids, positions_of((14, 10)), context).sum()
            loss.backward()
            kinds = {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None}
            assert kinds == ({torch.float32, torch.bfloat16} if is_one_pass else {torch.float32})
            norm = clip_gradients(optimizer, tuple(model.parameters()), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        found.append([torch.tensor([norm, loss.item()]), *model.state_dict().values(), *moments])
    assert all(map(torch.equal, *found))


def test_moments_have_memory_of_their_own() -> None:
    small, large = lasting_zeros(torch.ones(3, 5)), lasting_zeros(torch.ones(1024, 257))
    for zeros in (small, large):
        assert not zeros.any()
        assert zeros.untyped_storage().nbytes() == zeros.nbytes  # saving copies what shares memory
    large[-1] = 1
    assert float(large.sum()) == 257


def test_it_applies_where_it_is_exact() -> None:
    narrow = a_model().to(torch.bfloat16)
    assert type(build_optimizer(narrow, OptimizerConfig())) is torch.optim.AdamW
    # A loss scale is taken back by PyTorch's own optimizer.
    assert type(build_optimizer(a_model(), OptimizerConfig(), torch.float16)) is torch.optim.AdamW
    assert type(build_optimizer(a_model(), OptimizerConfig(), torch.bfloat16)) is CpuAdamW


def test_the_kernel_refuses_what_it_cannot_read() -> None:
    values = [torch.zeros(4) for _ in range(3)]
    with pytest.raises(InvalidArgumentError, match="`step` must hold 1, got 2"):
        Kernel([(*values, torch.zeros(2))], 1)
    kernel = Kernel([(*values, torch.zeros(()))], 1)
    rule = (0.1, 0.0, 0.9, 0.95, 1e-8)
    with pytest.raises(InvalidArgumentError, match="`gradients` must hold 1, got 0"):
        kernel.step([], [rule], 1.0)
    with pytest.raises(InvalidArgumentError, match="`gradient` must hold 4 numbers, got 5"):
        kernel.step([torch.zeros(5)], [rule], 1.0)


def test_a_run_loads_no_compiler() -> None:
    code = """
        import sys, tempfile
        from llm.training.launch import launch
        from tests.unit.training_samples import config
        launch(config(max_steps=2), tempfile.mkdtemp() + "/run", callbacks=[])
        sys.exit("torch._dynamo" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0
