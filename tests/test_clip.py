"""minidl.nn.utils against torch.nn.utils: norms of lists of gradients, and clipping by norm and by value."""

import copy
import inspect
import itertools
import warnings

import pytest
import torch
from check import assert_close_to_float64
from compare import assert_same_bits_on_threads

from minidl import nn
from minidl.nn import utils

inf, nan = float("inf"), float("nan")
TORCHS = torch.nn.utils
ORDERS = [2, 1, inf, "inf", -inf, 0, 3, 0.5, -1, 2.5]
SHAPES = [(), (1,), (31,), (33,), (7, 13), (1, 257), (2047,), (2049,), (3, 5, 700)]
LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "view at an odd offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "rows of a larger matrix": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other element": lambda x: torch.stack([x, x], -1)[..., 0],
}
every_order = pytest.mark.parametrize("p", ORDERS)
every_function = pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])


def randn(shapes=SHAPES, dtype=torch.float32, scale=1.0):
    rng = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(s, generator=rng, dtype=torch.float64)).to(dtype) for s in shapes]


def with_gradients(grads):
    """Parameters that have these very tensors for gradients."""
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def clipped(module, name, grads, *args, **kwargs):
    """What the function returns, and the gradients afterwards; `grads` are left as they are."""
    params = with_gradients([g.detach().clone() for g in grads])
    result = getattr(module, name)(params, *args, **kwargs)
    return [*([] if result is None else [result]), *(p.grad for p in params)]


def assert_as_exact_as_torch(name, grads, *args):
    ours = clipped(utils, name, grads, *args)
    theirs = clipped(TORCHS, name, [g.float() for g in grads], *args)
    oracle = clipped(TORCHS, name, [g.double() for g in grads], *args)
    assert len(ours) == len(theirs)
    for x, y, z in zip(ours, theirs, oracle, strict=True):
        assert x.dtype == grads[0].dtype
        assert_close_to_float64(x, y, z)


@every_order
@pytest.mark.parametrize("max_norm", [0.5, 1e9, 0, -1.0, inf])
def test_clip_grad_norm(isa, dtype, p, max_norm):
    assert_as_exact_as_torch("clip_grad_norm_", randn(dtype=dtype), max_norm, p)


@pytest.mark.parametrize("clip_value", [0.3, 1e9, 0, -1.0, inf])
def test_clip_grad_value(isa, dtype, clip_value):
    assert_as_exact_as_torch("clip_grad_value_", randn([*SHAPES, (0,)], dtype), clip_value)


@every_order
def test_norm_of_many_elements(isa, p):
    """A float32 sum over all of them in one chain would lose three digits."""
    grads = randn([(1_000_003,), (5,)], scale=3)
    norm = utils.get_total_norm(grads, p)
    truth = TORCHS.get_total_norm([g.double() for g in grads], p)
    torch.testing.assert_close(norm.double(), truth, rtol=1.5e-7, atol=0)


@every_order
def test_special_values(isa, dtype, p):
    for special in ([nan], [inf], [-inf], [nan, inf], [0.0, -0.0], [0.0, inf]):
        for position in (0, 17, 40):
            (a, b) = randn([(41,), (3,)], dtype)
            a[position : position + 1] = nan if nan in special else special[-1]
            b[: len(special)] = torch.tensor(special)
            for grads in ([a, b], [b, a], [a, torch.zeros(3, dtype=dtype)]):
                ours, theirs = (clipped(m, "clip_grad_norm_", grads, 0.5, p) for m in (utils, TORCHS))
                torch.testing.assert_close(ours, theirs, equal_nan=True)
                ours, theirs = (clipped(m, "clip_grad_value_", grads, 0.5) for m in (utils, TORCHS))
                torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)


def test_values_clipped_at_nan():
    assert clipped(utils, "clip_grad_value_", randn([(40,)]), nan)[0].isnan().all()


@every_order
def test_empty_tensors(p):
    for grads in (randn([(0,), (5,)]), randn([(2, 0)])):
        if p in (inf, "inf", -inf, -1):
            for module in (utils, TORCHS):
                with pytest.raises(
                    RuntimeError, match="on an empty tensor because the operation does not have"
                ):
                    clipped(module, "clip_grad_norm_", grads, 1.0, p)
        else:
            assert_as_exact_as_torch("clip_grad_norm_", grads, 1.0, p)


def test_mixed_dtypes(isa):
    grads = [*randn(), *randn(dtype=torch.float64)]
    ours, theirs = (clipped(m, "clip_grad_norm_", grads, 0.5) for m in (utils, TORCHS))
    assert ours[0].dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=1e-9)
    ours, theirs = (clipped(m, "clip_grad_value_", grads, 0.5) for m in (utils, TORCHS))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_function
def test_layouts(isa, name, layout):
    (value,) = randn([(7, 19)])
    grad = LAYOUTS[layout](value)
    (whole,) = [torch.as_strided(grad, (grad.untyped_storage().nbytes() // 4,), (1,), 0)]
    outside = torch.ones_like(whole, dtype=torch.bool)
    outside.as_strided(grad.shape, grad.stride(), grad.storage_offset()).fill_(False)
    before = whole[outside].clone()
    result = getattr(utils, name)(with_gradients([grad]), 0.5)
    expected = clipped(TORCHS, name, [value], 0.5)
    torch.testing.assert_close([*([] if result is None else [result]), grad], expected)
    assert torch.equal(whole[outside], before)


@every_function
@pytest.mark.parametrize("others", [[], [(100_003,)]])
def test_a_gradient_listed_twice_is_clipped_twice(name, others):
    results = []
    for module in (utils, TORCHS):
        first, *rest = with_gradients(randn([(100_003,), *others], torch.float64))
        shared = torch.nn.Parameter(torch.zeros_like(first))
        shared.grad = first.grad.view(-1)  # another tensor on the same memory
        result = getattr(module, name)([first, first, *rest, shared], 0.5)
        results.append([first.grad, *(p.grad for p in rest), *([] if result is None else [result])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_same_bits_on_every_number_of_threads(dtype):
    grads = randn([(300, 401), (3,), (100_003,)], dtype)
    for p in ORDERS:
        assert_same_bits_on_threads(lambda p=p: clipped(utils, "clip_grad_norm_", grads, 0.5, p))
    assert_same_bits_on_threads(lambda: clipped(utils, "clip_grad_value_", grads, 0.5))


@every_function
def test_what_parameters_may_be(name):
    results = []
    for module in (utils, TORCHS):
        clip = getattr(module, name)
        params = with_gradients(randn([(3,), (4,)], torch.float64))
        bare = torch.nn.Parameter(torch.zeros(3))
        results.append([p.grad.clone() for p in params])
        for parameters, limit in (
            (iter([bare, *params]), 0.1),
            ((p for p in params), 0.05),
            (dict.fromkeys(params), 0.02),
            (params[0], 0.001),
        ):
            clip(parameters, limit)
            results[-1] += [p.grad.clone() for p in params]
        assert bare.grad is None
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(results[-1][::2]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_no_gradients():
    bare = torch.nn.Parameter(torch.zeros(3))
    for parameters in ([], [bare], bare, torch.nn.Linear(2, 2).parameters()):
        norm = utils.clip_grad_norm_(parameters, 1.0)
        assert torch.equal(norm, torch.tensor(0.0))
        assert norm.dtype == torch.float32
    assert torch.equal(utils.get_total_norm([]), torch.tensor(0.0))
    utils.clip_grads_with_norm_([bare], 1.0, torch.tensor(2.0))
    utils.clip_grad_value_([bare], 1.0)
    assert bare.grad is None


def test_an_empty_generator_warns_where_it_is_given():
    for module in (utils, TORCHS):
        with pytest.warns(UserWarning, match="empty generator, no gradient clipping will occur") as seen:
            module.clip_grad_norm_((p for p in ()), 1.0)
        assert seen[0].filename == __file__


def test_total_norm_of_tensors():
    for module in (utils, TORCHS):
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        norm = module.get_total_norm(x)
        assert norm == 5
        assert norm.shape == ()
        assert not norm.requires_grad
        assert module.get_total_norm(iter([x, x * 0]), "inf") == 4


@pytest.mark.parametrize(
    ("max_norm", "norm"),
    [
        (1.0, torch.tensor(2.0)),
        (1.0, torch.tensor(2.0).double()),
        (1.0, torch.tensor(2)),
        (1.0, torch.tensor(nan)),
        (1e-7, torch.tensor(0.0)),
    ],
)
def test_clip_with_a_norm_that_is_given(dtype, max_norm, norm):
    results = []
    for module in (utils, TORCHS):
        params = with_gradients(randn(dtype=dtype))
        assert module.clip_grads_with_norm_((p for p in params), max_norm, norm) is None
        results.append([p.grad for p in params])
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("bad", [inf, nan])
def test_error_if_nonfinite_changes_nothing(bad):
    messages = []
    for module in (utils, TORCHS):
        grads = [torch.ones(3), torch.tensor([1.0, bad])]
        before = copy.deepcopy(grads)
        with pytest.raises(RuntimeError) as raised:
            module.clip_grad_norm_(with_gradients(grads), 0.1, "1", error_if_nonfinite=True)
        messages.append(str(raised.value))
        torch.testing.assert_close(grads, before, rtol=0, atol=0, equal_nan=True)
    assert messages[0] == messages[1]
    assert utils.clip_grad_norm_(with_gradients([torch.ones(4)]), 0.1, error_if_nonfinite=True) == 2


@every_function
def test_gradients_that_cannot_be_written_change_nothing(name):
    grads = [torch.ones(3), torch.ones(1).expand(3)]
    for module in (utils, TORCHS):
        with pytest.raises(RuntimeError, match="refers to a single memory location"):
            getattr(module, name)(with_gradients(grads[1:]), 0.1)
    with pytest.raises(RuntimeError, match="refers to a single memory location"):
        getattr(utils, name)(with_gradients(grads), 0.1)
    assert torch.equal(grads[0], torch.ones(3))
    assert utils.get_total_norm(grads[1]) == TORCHS.get_total_norm(grads[1])


@every_function
def test_sparse_gradients_change_nothing(name):
    grads = [torch.ones(3), torch.ones(3).to_sparse()]
    with pytest.raises(NotImplementedError):
        getattr(TORCHS, name)(with_gradients(grads[1:]), 0.1)
    with pytest.raises(NotImplementedError, match="does not support sparse gradients"):
        getattr(utils, name)(with_gradients(grads), 0.1)
    assert torch.equal(grads[0], torch.ones(3))


@every_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_change_nothing(name, dtype):
    grads = [torch.ones(3), torch.ones(3, dtype=dtype)]
    with pytest.raises(NotImplementedError, match="is implemented for float32 and float64"):
        getattr(utils, name)(with_gradients(grads), 0.1)
    assert torch.equal(grads[0], torch.ones(3))


BAD = {
    "not an iterable": lambda u: u.clip_grad_norm_(3, 1.0),
    "values of something that is no iterable": lambda u: u.clip_grad_value_(3, 1.0),
    "not tensors": lambda u: u.clip_grad_norm_([1], 1.0),
    "None for a tensor": lambda u: u.clip_grad_value_([None], 1.0),
    "names": lambda u: u.clip_grad_norm_({"a": torch.ones(1)}, 1.0),
    "no number for max_norm": lambda u: u.clip_grad_norm_(with_gradients(randn()), "x"),
    "no number for max_norm, no gradients": lambda u: u.clip_grads_with_norm_([], "x", torch.tensor(1.0)),
    "no number for norm_type": lambda u: u.get_total_norm([], "x"),
    "no number for clip_value": lambda u: u.clip_grad_value_(with_gradients(randn()), "x"),
    "integers": lambda u: u.get_total_norm([torch.arange(3)]),
    "a norm with a dimension": lambda u: u.clip_grads_with_norm_(
        with_gradients(randn()), 1.0, torch.tensor([1.0])
    ),
    "a norm that is no tensor": lambda u: u.clip_grads_with_norm_(with_gradients(randn()), 1.0, 1.0),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_bad_arguments_raise_what_torch_raises(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 whatever torch raises
        call(TORCHS)
    with pytest.raises(theirs.type):
        call(utils)


@every_function
def test_versions_and_graph(name):
    param = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        param.square().sum().backward(create_graph=True)
    assert param.grad.requires_grad
    product = (param.grad * param.grad).sum()  # saves the gradient
    version = param.grad._version
    getattr(utils, name)([param], 0.5)
    assert param.grad._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    param.grad = None  # breaks the cycle of create_graph


def test_operators():
    grads = randn([(3, 5), (4,)])
    ops = torch.ops.minidl
    torch.library.opcheck(ops.total_norm.default, (grads, 2.0))
    torch.library.opcheck(ops.clip_norm.default, (grads, torch.tensor(9.0), 1.0))
    torch.library.opcheck(ops.clip_value.default, (grads, 0.1))
    meta = [g.to("meta") for g in grads]
    assert ops.total_norm([*meta, meta[0].double()], 2.0).dtype == torch.float64
    ops.clip_norm(meta, torch.tensor(9.0), 1.0)
    grads[1].requires_grad_()
    for call in (
        lambda: ops.total_norm(grads, 2.0),
        lambda: ops.clip_norm(grads, torch.tensor(9.0), 1.0),
        lambda: ops.clip_value(grads, 0.1),
    ):
        with pytest.raises(RuntimeError, match="no derivative"):
            call()


def test_compiled():
    def clip(params):
        norm = utils.clip_grad_norm_(params, 0.5)
        utils.clip_grad_value_(params, 0.1)
        return norm

    eager, compiled = with_gradients(randn()), with_gradients(randn())
    expected = clip(eager)
    assert torch.equal(torch.compile(clip, fullgraph=True, backend="aot_eager")(compiled), expected)
    assert all(p.grad.equal(q.grad) for p, q in zip(eager, compiled, strict=True))


def test_module():
    assert nn.utils is utils
    assert set(utils.__all__) == set(TORCHS.__all__)
    mine = {"clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"}
    for name in TORCHS.__all__:
        assert (getattr(utils, name) is getattr(TORCHS, name)) == (name not in mine)
    for name in mine:
        ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (utils, TORCHS))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    assert utils.rnn.pad_sequence is TORCHS.rnn.pad_sequence
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = utils.nonsense
