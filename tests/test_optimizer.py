"""minidl.optim against torch.optim, a step at a time from equal states: trajectories amplify rounding."""

import copy
import itertools
import pickle

import pytest
import torch
from check import assert_close_to_float64
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from minidl import _C, optim
from minidl.optim import SGD, Adam, AdamW, RMSprop

OPTIONS = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.3, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"betas": (0.4, 0.5), "eps": 1e-3, "maximize": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    (
        "AdamW",
        {
            "amsgrad": True,
            "weight_decay": 0.3,
            "maximize": True,
            "lr": torch.tensor(0.01, dtype=torch.float64),
        },
    ),
]
every_option = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{n}-{'-'.join(o) or 'defaults'}" for n, o in OPTIONS]
)
every_class = pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
SHAPES = [(0,), (), (1,), (31,), (33,), (2, 0, 3), (7, 13), (1, 257), (64, 1)]


def build(module, name, params, options=None):
    return getattr(module, name)(params, **{"lr": 0.01, **(options or {})})


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype)) for s in shapes]


def set_gradients(params, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)


def tensors_of(optimizer):
    """Parameters and state, in the order of parameters and names."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [
        optimizer.state[p][k] for p in params if p in optimizer.state for k in sorted(optimizer.state[p])
    ]
    return [*params, *state]


def snapshot(optimizer):
    return [t.detach().clone() for t in tensors_of(optimizer)]


def assert_equal_tensors(a, b, **tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


def step_beside_torch(name, options, dtype, shapes=SHAPES, steps=4):
    """Yields (ours, torch's, torch's in float64) before each step, in equal states and with gradients."""
    ours, theirs, oracle = (
        build(module, name, parameters(shapes, kind), options)
        for module, kind in ((optim, dtype), (torch.optim, dtype), (torch.optim, torch.float64))
    )
    for step in range(steps):
        for optimizer in (ours, theirs, oracle):
            set_gradients(optimizer.param_groups[0]["params"], seed=step)
        yield ours, theirs, oracle
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        oracle.load_state_dict(copy.deepcopy(ours.state_dict()))
        with torch.no_grad():
            for x, y, z in zip(*(o.param_groups[0]["params"] for o in (ours, theirs, oracle)), strict=True):
                y.copy_(x)
                z.copy_(x)
                z.grad.copy_(x.grad)


@every_option
def test_float64_equals_torch(isa, name, options):
    for ours, theirs, _ in step_beside_torch(name, options, torch.float64):
        ours.step()
        theirs.step()
        assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-12, atol=1e-13)


@every_option
def test_float32_is_as_exact_as_torch(isa, name, options):
    for step, (ours, theirs, oracle) in enumerate(step_beside_torch(name, options, torch.float32)):
        if step == 0:  # the three parameters were rounded apart
            with torch.no_grad():
                for p, q in zip(
                    ours.param_groups[0]["params"], oracle.param_groups[0]["params"], strict=True
                ):
                    q.copy_(p)
                    q.grad.copy_(p.grad)
        for optimizer in (ours, theirs, oracle):
            optimizer.step()
        for x, y, z in zip(*map(tensors_of, (ours, theirs, oracle)), strict=True):
            assert_close_to_float64(x.detach(), y.detach(), z.detach().double())


@every_option
def test_same_bits_on_every_number_of_threads(name, options):
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            optimizer = build(optim, name, parameters([(300, 401), (3,), (100_003,)]), options)
            for step in range(2):
                set_gradients(optimizer.param_groups[0]["params"], seed=step)
                optimizer.step()
            results.append(snapshot(optimizer))
    finally:
        torch.set_num_threads(threads)
    assert_equal_tensors(*results)


@every_class
def test_large_tensors_over_threads(isa, name):
    for ours, theirs, _ in step_beside_torch(
        name, {}, torch.float64, [(1,), (300, 401), (100_003,), (5,)], steps=2
    ):
        ours.step()
        theirs.step()
        assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-12, atol=1e-13)


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "view at an odd offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "rows of a larger matrix": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other element": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize(("name", "options"), [OPTIONS[4], OPTIONS[9], OPTIONS[14]])
def test_layouts(isa, name, options, of_param, of_grad):
    rng = torch.Generator().manual_seed(0)
    value, grad = torch.randn(2, 7, 19, generator=rng, dtype=torch.float64)
    ours = LAYOUTS[of_param](value).detach().requires_grad_()
    theirs = value.clone().requires_grad_()
    a, b = build(optim, name, [ours], options), build(torch.optim, name, [theirs], options)
    for _ in range(2):
        ours.grad, theirs.grad = LAYOUTS[of_grad](grad), grad
        a.step()
        b.step()
    assert_equal_tensors(tensors_of(a), tensors_of(b), rtol=1e-12, atol=1e-13)


@every_option
def test_state_in_another_layout(name, options):
    ours, theirs = (
        build(m, name, parameters([(7, 13)], torch.float64), options) for m in (optim, torch.optim)
    )
    for step, optimizer in itertools.product(range(2), (ours, theirs)):
        set_gradients(optimizer.param_groups[0]["params"], seed=step)
        optimizer.step()
        for state in optimizer.state.values():
            state.update({k: LAYOUTS["transposed"](v) for k, v in state.items() if v.dim() == 2})
    assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-12, atol=1e-13)


@every_option
@pytest.mark.parametrize("n", [1, 15, 33])
def test_neighbours_in_memory_are_left_alone(isa, name, options, n):
    memory = torch.full((n + 64,), 777.0)
    param = memory[32 : 32 + n].requires_grad_()
    optimizer = build(optim, name, [param], options)
    set_gradients([param])
    optimizer.step()  # creates the state, which then moves into guarded memory
    guarded = [memory]
    for key, value in optimizer.state[param].items():
        if value.dim() == 1:
            guarded.append(torch.full_like(memory, 777.0))
            optimizer.state[param][key] = guarded[-1][32 : 32 + n].copy_(value)
    optimizer.step()
    for whole in guarded:
        assert (whole[:32] == 777).all()
        assert (whole[32 + n :] == 777).all()
        assert (whole[32 : 32 + n] != 777).all()


@every_option
def test_nan_and_inf(isa, name, options):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e18, 1e-30] * 5)
    ours, theirs = (
        build(module, name, [torch.nn.Parameter(torch.arange(35.0) - 3)], options)
        for module in (optim, torch.optim)
    )
    for roll, optimizer in itertools.product(range(2), (ours, theirs)):
        param = optimizer.param_groups[0]["params"][0]
        with torch.no_grad():
            param[7] = float("inf")
        param.grad = special.roll(roll).clone()
        optimizer.step()
    assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-5, atol=1e-30)


def test_amsgrad_keeps_a_nan_maximum(isa):
    for nan_in in ("exp_avg_sq", "max_exp_avg_sq"):
        optimizer = Adam(parameters([(33,)]), amsgrad=True)
        param = optimizer.param_groups[0]["params"][0]
        set_gradients([param])
        optimizer.step()
        optimizer.state[param][nan_in][20] = float("nan")
        optimizer.step()
        expected = torch.zeros(33, dtype=torch.bool)
        expected[20] = True
        assert torch.equal(optimizer.state[param]["max_exp_avg_sq"].isnan(), expected)
        assert torch.equal(param.isnan(), expected)


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
def test_missing_gradients(name):
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs = (
        build(m, name, parameters([(3,), (4,), (5,)], torch.float64), options) for m in (optim, torch.optim)
    )
    for step, optimizer in itertools.product(range(5), (ours, theirs)):
        params = optimizer.param_groups[0]["params"]
        set_gradients(params, seed=step)
        params[step % 3].grad = None  # the first update of one parameter comes with the second of another
        optimizer.step()
    assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-12, atol=1e-13)
    optimizer = build(optim, name, parameters())
    optimizer.step()
    assert not optimizer.state


@every_class
def test_mixed_dtypes_in_a_group(name):
    ours, theirs = (
        build(m, name, parameters([(3,)]) + parameters([(40,)], torch.float64)) for m in (optim, torch.optim)
    )
    for step, optimizer in itertools.product(range(2), (ours, theirs)):
        set_gradients(optimizer.param_groups[0]["params"], seed=step)
        optimizer.step()
    assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-6, atol=1e-7)


@every_class
@pytest.mark.parametrize(
    "lr", [torch.tensor(0.05), torch.tensor([0.05]), torch.tensor(0.05, requires_grad=True)]
)
def test_tensor_lr(name, lr):
    ours, theirs = (
        build(m, name, parameters([(3,)], torch.float64), {"lr": v})
        for m, v in ((optim, lr), (torch.optim, 0.05))
    )
    for step, optimizer in itertools.product(range(2), (ours, theirs)):
        set_gradients(optimizer.param_groups[0]["params"], seed=step)
        optimizer.step()
    assert_equal_tensors(tensors_of(ours), tensors_of(theirs), rtol=1e-7, atol=1e-8)


def test_tensor_betas_and_weight_decay():
    param, other = (parameters([(3,)], torch.float64)[0] for _ in range(2))
    for p in (param, other):
        set_gradients([p])
    Adam(
        [param], betas=(torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.99, dtype=torch.float64))
    ).step()
    torch.optim.Adam([other], betas=(0.9, 0.99)).step()
    SGD([param], lr=0.1, weight_decay=torch.tensor(0.1, dtype=torch.float64)).step()
    torch.optim.SGD([other], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(param, other, rtol=1e-12, atol=0)


@every_class
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_listed_twice_is_updated_twice(name):
    results = []
    for module in (optim, torch.optim):
        param = parameters([(100_003,)], torch.float64)[0]
        optimizer = build(module, name, [param, param])
        set_gradients([param])
        for _ in range(2):
            optimizer.step()
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


@every_class
@pytest.mark.parametrize("flag", ["differentiable", "capturable"])
def test_flags_that_are_not_implemented(name, flag):
    params = parameters([(3,)])
    set_gradients(params)
    before = copy.deepcopy(params)
    optimizer = build(optim, name, params)
    state = optimizer.state_dict()
    state["param_groups"][0][flag] = True
    optimizer.load_state_dict(state)
    with pytest.raises(NotImplementedError, match=f"{flag}=True is not implemented"):
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


def lists(n=2, shape=(3, 5), dtype=torch.float32, device="cpu"):
    return [torch.rand(shape, dtype=dtype, device=device) for _ in range(n)]


def operator_calls(device="cpu"):
    step = [torch.ones((), device=device) for _ in range(2)]
    full = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1}
    three = [lists(device=device) for _ in range(3)]
    pair = (lists(device=device), lists(device=device))
    return {
        "sgd_step": ((*pair, three[0], [1]), {"lr": 0.1, "momentum": 0.9}),
        "rmsprop_step": ((*pair, *three, step), {**full, "alpha": 0.9, "momentum": 0.9, "centered": True}),
        "adam_step": ((*pair, *three, step), {**full, "beta1": 0.9, "beta2": 0.99, "amsgrad": True}),
    }


@pytest.mark.parametrize("name", operator_calls())
def test_operator(name):
    args, kwargs = operator_calls()[name]
    op = getattr(torch.ops.minidl, name).default
    torch.library.opcheck(op, args, kwargs)
    meta_args, _ = operator_calls("meta")[name]
    op(*meta_args, **kwargs)
    with pytest.raises(RuntimeError, match=r"expected one grad for each of the 2 params, but got 1"):
        op(args[0], args[1][:1], *args[2:], **kwargs)
    for p in args[0]:
        p.requires_grad_()
    with pytest.raises(RuntimeError, match="no derivative"):
        op(*args, **kwargs)


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
