"""From a row's sizes and family to a model: embedding, blocks, head.

The family says what sizes do not: norm, gating, mask, positions, biases, whether the head shares the embedding. Multi-
token prediction counts as so many blocks more at the end (their second head is not priced).
"""

from __future__ import annotations

import re
from dataclasses import replace

from pydantic import ValidationError

from planner.cost.parameters import total_parameters
from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import (
    AnyLayer,
    Attention,
    Block,
    DenseFeedForward,
    Embedding,
    FeedForward,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    LayerRun,
    Model,
    MoeFeedForward,
)
from profiles.architectures import model_preset
from profiles.runs.record import ModelFacts
from profiles.runs.skipped import Skipped
from profiles.runs.traits import FAMILIES, NOT_MODELLED, Traits

_MOE_PERIOD = re.compile(r"every (?P<step>\d+|other|second|third|fourth)(?:st|nd|rd|th)?\b|1 (?:in|of) (?P<of>\d+)")
_MOE_ALL = re.compile(r"(all|every)( layers?| blocks?)?( *\(.*\))?")
_MOE_AFTER = re.compile(r"(?P<dense>\d+) dense")
_LONGEST = 200
"""Characters of a frequency; Python reads no number of thousands of digits."""
_WINDOW = re.compile(r"sliding[- ]window\s*\(?(?P<window>\d+)")
_NUMBERS = {"other": 2, "second": 2, "third": 3, "fourth": 4}


def model_of(facts: ModelFacts, sequence_length: int) -> Model | Skipped:
    """The model that a row describes."""
    words = set(re.split(r"[^a-z0-9]+", f"{facts.family} {facts.name}".lower()))
    for word, feature in NOT_MODELLED.items():
        if word in words:
            return Skipped(f"model.family: {feature} are not modelled")
    if unread := _unread(facts):
        return unread
    lacking = lacking_facts(facts)
    if lacking:
        return _preset(facts, lacking)
    try:
        traits = _traits(facts)
        if traits is not None:
            return _build(facts, traits, sequence_length)
    except ValidationError as error:
        return Skipped(f"model: {InputError.from_validation(error)}")
    return Skipped(f"model.family: {facts.family!r} is not known, and model.params_b does not tell how it is built")


def lacking_facts(facts: ModelFacts) -> list[str]:
    """Sizes without which a row does not tell its architecture."""
    needed = ["layers", "hidden", "heads", "vocab"]
    needed += ["top_k"] if _num_experts(facts) else []
    needed += ["mla"] if "mla" in facts.family.lower() else []
    if facts.ffn_hidden is None and facts.moe_ffn_hidden is None:
        needed.append("ffn_hidden")
    return [name for name in needed if getattr(facts, name) is None]


def _num_experts(facts: ModelFacts) -> int:
    """0 for a dense model, however a row writes that."""
    return facts.experts if facts.experts and facts.experts > 1 else 0


def _preset(facts: ModelFacts, lacking: list[str]) -> Model | Skipped:
    try:
        return model_preset(re.sub(r"[\s_]+", "-", facts.name))
    except NotFoundError:
        names = ", ".join(f"model.{name}" for name in lacking)
        return Skipped(f"{names}: not known, and no preset is named {facts.name!r}")


def _traits(facts: ModelFacts) -> Traits | None:
    family = facts.family.lower()
    known = [name for name in FAMILIES if family.startswith(name)]
    if "bloom" in family:
        return FAMILIES["bloom"]
    if known:
        return FAMILIES[max(known, key=len)]
    size = facts.params_b
    if size is None:
        return None
    tries = [replace(Traits(), gated=gated, tied=tied) for gated in (True, False) for tied in (False, True)]
    sizes = {traits: total_parameters(_build(facts, traits, 1)) for traits in tries}
    return min(tries, key=lambda traits: abs(sizes[traits] - size * 1e9))


def _build(facts: ModelFacts, traits: Traits, sequence_length: int) -> Model:
    assert facts.layers and facts.hidden and facts.vocab
    positions = max(sequence_length, facts.seq or 1) if traits.positions else 0
    layers: list[AnyLayer] = [Embedding(vocab_size=facts.vocab, num_positions=positions)]
    sparse = _sparse(facts)
    window, every_other = _window(facts, traits)
    for number in range(facts.layers):
        slides = window if number % 2 == 0 or not every_other else None
        feed_forward = _experts(facts, traits) if sparse[number] else _dense(facts, traits)
        layers.append(Block(attention=_attention(facts, traits, slides), feed_forward=feed_forward, norm=traits.norm))
    layers += [layers[-1]] * (facts.mtp_layers or 0)
    layers.append(Head(vocab_size=facts.vocab, norm=traits.norm, tied=traits.tied))
    return Model(name=facts.name, hidden_size=facts.hidden, runs=_runs(layers))


def _runs(layers: list[AnyLayer]) -> tuple[LayerRun, ...]:
    runs: list[tuple[AnyLayer, int]] = []
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return tuple(LayerRun(layer=layer, num_layers=count) for layer, count in runs)


def _attention(facts: ModelFacts, traits: Traits, window: int | None) -> Attention:
    assert facts.heads and facts.hidden
    if facts.mla is not None:
        return LatentAttention(
            num_heads=facts.heads,
            q_lora_rank=facts.mla.q_lora_rank,
            kv_lora_rank=facts.mla.kv_lora_rank,
            qk_nope_head_dim=facts.mla.qk_nope,
            qk_rope_head_dim=facts.mla.qk_rope,
            v_head_dim=facts.mla.v,
            causal=traits.causal,
        )
    return GroupedQueryAttention(
        num_heads=facts.heads,
        num_kv_heads=facts.kv_heads or facts.heads,
        head_dim=facts.head_dim or max(1, facts.hidden // facts.heads),
        causal=traits.causal,
        window=window,
        qkv_bias=traits.biases or traits.qkv_bias,
        output_bias=traits.biases,
        qk_norm="per_head" if traits.qk_norm else "none",
        sinks=traits.sinks,
    )


def _dense(facts: ModelFacts, traits: Traits) -> FeedForward:
    width = facts.ffn_hidden or facts.moe_ffn_hidden
    assert width
    return DenseFeedForward(width=width, gated=traits.gated, bias=traits.biases)


def _experts(facts: ModelFacts, traits: Traits) -> FeedForward:
    width = facts.moe_ffn_hidden or facts.ffn_hidden
    assert width and facts.experts and facts.top_k
    if facts.moe_ffn_hidden is None and "fastmoe" in facts.family.lower():
        # Each expert gets a share of the dense width (fastmoe, fmoe/megatron/patch.py: hidden_size * 4 // top_k).
        width //= facts.top_k
    shared = facts.shared_expert_hidden
    return MoeFeedForward(
        num_experts=facts.experts,
        top_k=facts.top_k,
        expert_width=width,
        gated=traits.gated,
        bias=traits.biases,
        router_bias=traits.sinks,
        shared_width=shared if shared is not None else (facts.shared_experts or 0) * width,
    )


def _sparse(facts: ModelFacts) -> list[bool]:
    """For each block whether it has experts: `moe_layer_freq` is "all", "every 2nd layer", "3 dense then 58 MoE", 2."""
    assert facts.layers
    if not _num_experts(facts):
        return [False] * facts.layers
    if isinstance(facts.moe_layer_freq, tuple):
        return [bool(flag) for flag in facts.moe_layer_freq[: facts.layers]]
    period = _period(facts)
    assert period, "model_of() has looked"
    dense, step = period
    return [number >= dense and (number + 1) % step == 0 for number in range(facts.layers)]


def _period(facts: ModelFacts) -> tuple[int, int] | None:
    """Blocks without experts before the first that may have them, and each how-many-th has; None: no rule knows it."""
    text = str(facts.moe_layer_freq or "all").lower().strip()
    period, first = _MOE_PERIOD.search(text), _MOE_AFTER.search(text)
    if len(text) > _LONGEST or not (period or first or text.isdecimal() or _MOE_ALL.fullmatch(text)):
        return None
    step = text if text.isdecimal() else (period["step"] or period["of"]) if period else "1"
    found = int(first["dense"]) if first else 0, _NUMBERS.get(step) or int(step)
    return found if found[1] else None


def _unread(facts: ModelFacts) -> Skipped | None:
    """Why `moe_layer_freq` does not tell which blocks have experts."""
    given = facts.moe_layer_freq
    if not _num_experts(facts):
        return None
    if not isinstance(given, tuple):
        return None if _period(facts) else Skipped(f"model.moe_layer_freq: {given!r} is not known")
    if facts.layers is None or len(given) in (facts.layers, facts.layers + (facts.mtp_layers or 0)):
        return None
    return Skipped(f"model.moe_layer_freq: has {len(given)} entries for {facts.layers} layers")


def _window(facts: ModelFacts, traits: Traits) -> tuple[int | None, bool]:
    """Tokens of a sliding window, and whether only every other block has it."""
    note = (facts.note or "").lower()
    found = _WINDOW.search(note)
    if found:
        return int(found["window"]), "alternat" in note
    return traits.window, True
