"""Estimators of KL(policy || reference), exact or from samples.

With p the policy and q the reference at the sampled token:

    k1 = log p - log q           unbiased; can be negative
    k2 = (log p - log q)^2 / 2   biased; its gradient is unbiased
    k3 = q/p - 1 - log q/p       unbiased, never negative; its gradient is that of KL(q || p)

(J. Schulman, "Approximating KL divergence", 2020.) In the *loss*, at states that the policy
visited, `exact` and `k2` have the gradient of the divergence at those states; the gradient of `k3`
is biased, and that of `k1` is zero on average. In the *reward*, `k1` has the gradient of the
divergence between sequences, including a token's effect on later states. So does `exact`, with
less variance, if it also appears in the loss, because in the reward it covers later states only
(Rao-Blackwell; Amini et al., arXiv:2504.10637). `k2` and `k3` have gradients there that vanish near
the reference. `require_sound` rejects the combinations that cannot work.

Off-policy, after the first of several updates from one rollout, the tokens come from an older
policy mu. In the loss, `k2` and `k3` are then weighted by the importance ratio p/mu, held constant
in the gradient, so that each keeps its on-policy gradient; `exact` sums over the vocabulary and
needs no weight. In the reward, the divergence is that of mu, fixed for all updates from the rollout
as in RLHF with PPO (Stiennon et al., arXiv:2009.01325); the ratio is then part of the policy loss.
At the visited states `k1` then has the gradient of KL(p || q) - KL(p || mu), and `exact`, through
its term in the loss, that of KL(p || q).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from grlu.errors import UserError

KLName = Literal["exact", "k1", "k2", "k3"]
Place = Literal["loss", "reward"]


def exact(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return the exact divergence in nats, shape (...), from log-probabilities (..., V)."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def k1(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return the log-ratio of the sampled token."""
    return log_p - log_q


def k2(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return half of the squared log-ratio."""
    return 0.5 * jnp.square(log_p - log_q)


def k3(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return the log-ratio with a control variate."""
    return jnp.expm1(log_q - log_p) - (log_q - log_p)


def chosen(log_p: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the log-probabilities of tokens (...), given those of the vocabulary (..., V)."""
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


SAMPLED: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"k1": k1, "k2": k2, "k3": k3}


def divergence(
    name: KLName,
    log_p: jax.Array,
    log_q: jax.Array,
    tokens: jax.Array,
    ratio: jax.Array | None = None,
) -> jax.Array:
    """Return the divergence per token, (...), estimated by the named estimator.

    Args:
        name: "exact", "k1", "k2" or "k3".
        log_p: log-probabilities of all tokens under the policy, (..., V).
        log_q: the same under the reference, (..., V).
        tokens: sampled tokens, (...).
        ratio: importance ratio of each token, policy to sampling policy, (...); None on-policy.
            "exact" ignores it.
    """
    if name == "exact":
        return exact(log_p, log_q)
    sampled = SAMPLED[name](chosen(log_p, tokens), chosen(log_q, tokens))
    return sampled if ratio is None else jax.lax.stop_gradient(ratio) * sampled


def require_sound(name: KLName, place: Place) -> None:
    """Raise UserError if the estimator cannot work: k1 in the loss, k2 and k3 in the reward."""
    if (name, place) == ("k1", "loss"):
        raise UserError(
            "trainer.kl=k1 in the loss has a gradient of zero on average: use exact, k2 or k3, or "
            "trainer.kl_in=reward"
        )
    if place == "reward" and name in ("k2", "k3"):
        raise UserError(
            f"trainer.kl={name} in the reward has a gradient that vanishes near the reference: use "
            "exact or k1, or trainer.kl_in=loss"
        )


def in_loss(name: KLName, place: Place) -> bool:
    """Return True if the loss has a KL term: in the reward, `exact` needs one in the loss too."""
    return place == "loss" or name == "exact"


def coefficient(beta: float, tokens_seen: jax.Array, warmup_tokens: int) -> jax.Array:
    """Return beta, warmed up linearly from 0 over the first `warmup_tokens` sampled tokens."""
    if not warmup_tokens:
        return jnp.asarray(beta, jnp.float32)
    return beta * jnp.minimum(1.0, tokens_seen / warmup_tokens)
