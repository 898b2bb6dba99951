"""minidl.optim's classes stand where torch.optim's stood: state, hooks, schedulers, groups, options, errors."""

import copy
import pickle

import pytest
import torch
from optimizers import (
    assert_equal_tensors,
    build,
    every_class,
    every_option,
    parameters,
    set_gradients,
    snapshot,
    tensors_of,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from minidl import _C, optim
from minidl.optim import SGD, Adam, AdamW, RMSprop


@every_option
@pytest.mark.parametrize("ours_first", [True, False])
def test_state_goes_both_ways(name, options, ours_first):
    modules = (optim, torch.optim) if ours_first else (torch.optim, optim)
    first, second, alone = (build(m, name, parameters(), options) for m in (*modules, torch.optim))
    for step in range(3):
        for optimizer in (first, alone):
            set_gradients(optimizer.param_groups[0]["params"], seed=step)
            optimizer.step()
    with torch.no_grad():
        for p, q in zip(second.param_groups[0]["params"], first.param_groups[0]["params"], strict=True):
            p.copy_(q)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert list(second.state_dict()["param_groups"][0]) == list(alone.state_dict()["param_groups"][0])
    for optimizer in (second, alone):
        set_gradients(optimizer.param_groups[0]["params"], seed=3)
        optimizer.step()
    for p, q in zip(tensors_of(second), tensors_of(alone), strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)
    assert [list(s) for s in second.state.values()] == [list(s) for s in alone.state.values()]


@every_option
def test_state_layout_and_repr_are_torchs(name, options):
    ours, theirs = (build(module, name, parameters(), options) for module in (optim, torch.optim))
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(torch.optim, name))
    for optimizer in (ours, theirs):
        set_gradients(optimizer.param_groups[0]["params"])
        optimizer.step()
    a, b = ours.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for of_ours, of_theirs in zip(a["state"].values(), b["state"].values(), strict=True):
        assert list(of_ours) == list(of_theirs)
        for x, y in zip(of_ours.values(), of_theirs.values(), strict=True):
            assert (x.dtype, x.shape, x.stride(), x.device) == (y.dtype, y.shape, y.stride(), y.device)


@every_class
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue(name, duplicate):
    original = build(optim, name, parameters())
    set_gradients(original.param_groups[0]["params"])
    original.step()
    copied = duplicate(original)
    for optimizer in (original, copied):
        set_gradients(optimizer.param_groups[0]["params"], seed=1)
        optimizer.step()
    assert_equal_tensors(tensors_of(original), tensors_of(copied))


@every_class
def test_hooks_and_profiler(name):
    optimizer = build(optim, name, parameters([(3,)]))
    set_gradients(optimizer.param_groups[0]["params"])
    calls = []
    seen = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append(("pre", o, args, kwargs))),
        optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append(("post", o, args, kwargs))),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    before = snapshot(optimizer)[0]
    optimizer.step()
    args = (optimizer, (optimizer,), {})
    assert calls == ["global pre", ("pre", *args), ("post", *args), "global post"]
    for handle in seen:
        handle.remove()
        set_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    assert len(calls) == 4
    assert not torch.equal(before, snapshot(optimizer)[0])
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert f"Optimizer.step#{name}.step" in {event.key for event in profile.key_averages()}


@every_class
def test_closure(name):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = build(optim, name, [param])

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 3
    assert torch.is_grad_enabled()
    assert optimizer.step(closure=closure) < 3
    assert optimizer.step() is None


@every_class
def test_scheduler_and_groups(name):
    results = []
    for module in (optim, torch.optim):
        first, second, late = (parameters([(5,)], torch.float64, seed)[0] for seed in range(3))
        optimizer = build(
            module, name, [{"params": [first]}, {"params": [second], "lr": 0.1, "weight_decay": 0.2}]
        )
        scheduler = module.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": [late]})
                scheduler = module.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
            set_gradients([first, second, late], seed=step)
            optimizer.step()
            scheduler.step()
        results.append(tensors_of(optimizer))
    assert_equal_tensors(*results, rtol=1e-12, atol=1e-13)


@every_class
def test_versions_and_graph(name):
    param = parameters([(3,)])[0]
    optimizer = build(optim, name, [param], {"momentum": 0.9} if name in ("SGD", "RMSprop") else {})
    set_gradients([param])
    optimizer.step()
    tensors = tensors_of(optimizer)
    before = [t._version for t in tensors]
    optimizer.step()
    assert [t._version for t in tensors] == [v + 1 for v in before]
    assert param.is_leaf
    assert not any(t.requires_grad for t in tensors[1:])
    loss = (param * param).sum()  # saves param
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_class
def test_grad_scaler(name):
    results = []
    for module, fused in ((optim, None), (optim, True), (torch.optim, None)):
        param = parameters([(5,)], torch.float64)[0]
        options = {} if name == "RMSprop" else {"fused": fused}
        optimizer = build(module, name, [param], options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale((param.square() * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512
        results.append(tensors_of(optimizer))
    assert_equal_tensors(results[0], results[2], rtol=1e-12, atol=1e-13)
    assert_equal_tensors(results[1], results[2], rtol=1e-12, atol=1e-13)


def wrong_shape_of_state(param, state):
    state["exp_avg"] = torch.zeros(4)
    return RuntimeError, "expected param and exp_avg to have the same shape"


def wrong_dtype_of_state(param, state):
    state["exp_avg_sq"] = torch.zeros(3, dtype=torch.float64)
    return RuntimeError, "expected param and exp_avg_sq to have the same dtype"


def expanded_state(param, state):
    state["exp_avg"] = torch.zeros(1).expand(3)
    return RuntimeError, "more than one element of the written-to tensor refers to a single memory location"


def step_on_two_elements(param, state):
    state["step"] = torch.zeros(2)
    return RuntimeError, "expected step to be a float32 or float64 CPU tensor of one element"


def integer_step(param, state):
    state["step"] = torch.zeros((), dtype=torch.int64)
    return RuntimeError, "expected step to be"


def state_that_is_no_tensor(param, state):
    state["exp_avg"] = [0.0] * 3
    return TypeError, "expected a Tensor"


def state_of_none(param, state):
    state["exp_avg"] = None
    return RuntimeError, "None for a tensor"


@pytest.mark.parametrize(
    "change",
    [
        wrong_shape_of_state,
        wrong_dtype_of_state,
        expanded_state,
        step_on_two_elements,
        integer_step,
        state_that_is_no_tensor,
        state_of_none,
    ],
)
def test_bad_state_changes_nothing(change):
    params = parameters([(3,), (3,)])
    optimizer = Adam(params)
    set_gradients(params)
    optimizer.step()
    error, message = change(params[1], optimizer.state[params[1]])
    before = copy.deepcopy((params, dict(optimizer.state)[params[0]]))
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_equal_tensors([*before[0], *before[1].values()], [*params, *optimizer.state[params[0]].values()])


@every_class
@pytest.mark.parametrize("fresh", [True, False])
def test_sparse_gradients_change_nothing(name, fresh):
    params = parameters([(3,), (3,)])
    optimizer = build(optim, name, params, {"momentum": 0.9} if name == "SGD" else {})
    set_gradients(params)
    if not fresh:
        optimizer.step()
    params[1].grad = params[1].grad.to_sparse()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="support sparse gradients"):
        optimizer.step()
    assert_equal_tensors(before[:2], params)


@every_class
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16, torch.bfloat16])
def test_other_dtypes_change_nothing(name, dtype):
    params = [*parameters([(3,)]), torch.nn.Parameter(torch.ones(3, dtype=dtype))]
    optimizer = build(optim, name, params)
    for p in params:
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(params)
    with pytest.raises(NotImplementedError, match="is implemented for float32 and float64"):
        optimizer.step()
    assert_equal_tensors(before, params)


@pytest.mark.parametrize(
    ("name", "flag", "error"),
    [(name, "differentiable", NotImplementedError) for name in ("SGD", "RMSprop", "Adam", "AdamW")]
    + [(name, "capturable", AssertionError) for name in ("RMSprop", "Adam", "AdamW")],
)
def test_flags_that_raise(name, flag, error):
    """capturable is for CUDA graphs: on the CPU torch raises too."""
    params = parameters([(3,)])
    set_gradients(params)
    before = copy.deepcopy(params)
    optimizer = build(optim, name, params)
    state = optimizer.state_dict()
    state["param_groups"][0][flag] = True
    optimizer.load_state_dict(state)
    with pytest.raises(error, match=f"{flag}=True"):
        optimizer.step()
    assert_equal_tensors(before, params)


@every_class
def test_torchs_own_errors(name):
    with pytest.raises(ValueError, match="Invalid learning rate"):
        build(optim, name, parameters(), {"lr": -1.0})
    with pytest.raises(ValueError, match="empty parameter list"):
        build(optim, name, [])
    if name != "RMSprop":
        with pytest.raises(RuntimeError, match="cannot be `True` together"):
            build(optim, name, parameters(), {"fused": True, "foreach": True})


def test_options_that_need_state_which_is_not_there():
    for name, flag, value in (
        ("Adam", "amsgrad", True),
        ("RMSprop", "momentum", 0.9),
        ("RMSprop", "centered", True),
    ):
        optimizer = build(optim, name, parameters([(3,)]))
        set_gradients(optimizer.param_groups[0]["params"])
        optimizer.step()
        optimizer.param_groups[0][flag] = value
        before = snapshot(optimizer)
        with pytest.raises(KeyError):
            optimizer.step()
        assert_equal_tensors(before, snapshot(optimizer))


def test_expanded_parameter_raises():
    param = torch.ones(1).expand(3).requires_grad_()
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="refers to a single memory location"):
        SGD([param], lr=0.1).step()


def test_momentum_switched_on_later():
    results = []
    for module in (optim, torch.optim):
        optimizer = build(module, "SGD", parameters([(3,)], torch.float64))
        for step in range(3):
            set_gradients(optimizer.param_groups[0]["params"], seed=step)
            optimizer.param_groups[0]["momentum"] = 0.9 * (step > 0)
            optimizer.step()
        results.append(tensors_of(optimizer))
    assert_equal_tensors(*results, rtol=1e-12, atol=1e-13)


def test_step_counts_in_float64_where_that_is_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = Adam(parameters([(3,)]))
        set_gradients(optimizer.param_groups[0]["params"])
        for _ in range(2):
            optimizer.step()
        (state,) = optimizer.state.values()
        assert state["step"].dtype == torch.float64
        assert state["step"] == 2
    finally:
        torch.set_default_dtype(torch.float32)


@every_class
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_functions_that_step(name):
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="eager")):
        param = parameters([(5,)], torch.float64)[0]
        optimizer = build(optim, name, [param])

        @wrap
        def train(param=param, optimizer=optimizer):
            loss = (param * param).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        train()
        train()
        results.append(tensors_of(optimizer))
    assert_equal_tensors(*results)


def test_module():
    for name in optim.__all__:
        assert hasattr(optim, name)
    with pytest.raises(AttributeError, match=r"torch\.optim\.Adagrad works beside it"):
        _ = optim.Adagrad
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = optim.Nonsense
    assert optim.Optimizer is torch.optim.Optimizer
    assert issubclass(AdamW, torch.optim.AdamW)
    assert issubclass(RMSprop, torch.optim.RMSprop)
    assert _C.isa() in _C.available_isas()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_every_gradient(set_to_none):
    a, b = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1}], lr=0.5)
    (a.sum() + b.sum()).backward()
    optimizer.zero_grad(set_to_none)
    for p in (a, b):
        assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros_like(p))
    optimizer.zero_grad(set_to_none)  # again, with nothing left


def test_zero_grad_is_a_range_of_the_profile():
    p = torch.randn(3, requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5)
    with torch.profiler.profile() as profile:
        optimizer.zero_grad()
    assert any("zero_grad" in event.key for event in profile.key_averages())
