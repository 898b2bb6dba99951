"""minidl.optim's updates against torch.optim's, a step at a time from equal states: trajectories amplify rounding."""

import copy
import itertools

import pytest
import torch
from check import assert_close_to_float64
from optimizers import (
    OPTIONS,
    SHAPES,
    assert_equal_tensors,
    build,
    every_class,
    every_option,
    parameters,
    set_gradients,
    snapshot,
    tensors_of,
)

from minidl import optim
from minidl.optim import SGD, Adam


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
