"""minidl's and torch's normalisations as functions of x, weight and bias."""

import torch
import torch.nn.functional as TF

import minidl.functional as F


def batch(training, activation=None, running=None, eps=1e-5):
    """Ours and torch's batch norm of (x, w, b), with running statistics that fit x if not those of a batch."""

    def of(batch_norm, relu):
        def run(x, w=None, b=None):
            mean, var = (None, None) if running is None else (p.clone().to(x.dtype) for p in running)
            # contiguous: torch 2.13 reads a strided weight as if it were not, for an input of two dimensions.
            w = w if w is None or batch_norm is fused else w.contiguous()
            return relu(batch_norm(x, mean, var, w, b, training, eps=eps))

        return run

    def fused(*args, **kwargs):
        return F.batch_norm(*args, **kwargs, activation=activation)

    return of(fused, lambda y: y), of(TF.batch_norm, TF.relu if activation else lambda y: y)


def norms(name, parameter, activation=None):
    """Ours and torch's layer_norm or group_norm of (x, w, b)."""
    ours, torchs = getattr(F, name), getattr(TF, name)

    def theirs(x, parameter, w, b):
        # torch 2.13's group norm has no backward pass with a bias alone, and loses digits in the channels_last order.
        w = torch.ones_like(b) if w is None and b is not None else w
        return torchs(x.contiguous(), parameter, w, b)

    return (
        lambda x, w=None, b=None: ours(x, parameter, w, b, activation=activation),
        lambda x, w=None, b=None: (
            TF.relu(theirs(x, parameter, w, b)) if activation else theirs(x, parameter, w, b)
        ),
    )


def floor(dtype):
    """Units in the last place: more for float64, as the oracle's own sums are in float64, one after another."""
    return 4 if dtype == torch.float32 else 64


def affine(shape, dtype):
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
