"""Models that are not decoders alone: BERT, ViT, Swin, and encoder-decoders (T5, Switch Transformers).

As `families`: one function for each `model_type`, defaults of the library's configuration classes (transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.spec.model import (
    MAX_LAYERS,
    AnyLayer,
    Block,
    DenseFeedForward,
    Embedding,
    EncoderEnd,
    FeedForward,
    GroupedQueryAttention,
    Head,
    Merging,
    Model,
    MoeFeedForward,
    Norm,
    PatchEmbedding,
)
from profiles.config_reader import ConfigReader
from profiles.decoder import stack


def bert(config: ConfigReader) -> Model:
    """Masked-language model: the head has a square matrix of its own before that of the embedding."""
    config.refuse("is_decoder", "a BERT that decodes is not known")
    config.refuse("add_cross_attention", "a BERT that decodes is not known")
    hidden, vocab_size = config.count("hidden_size"), config.count("vocab_size")
    positions = config.count("max_position_embeddings", 512)
    block = _encoder_block(config, hidden, config.count("num_attention_heads"), config.count("intermediate_size"))
    embedding = Embedding(
        vocab_size=vocab_size,
        num_positions=positions,
        num_token_types=config.count("type_vocab_size", 2),
        norm=Norm.LAYER,
    )
    tied = config.flag("tie_word_embeddings", True)
    head = Head(vocab_size=vocab_size, norm=Norm.LAYER, tied=tied, bias=True, transform=True)
    return stack(config, hidden, [embedding, *[block] * config.num_layers("num_hidden_layers"), head], positions)


def vit(config: ConfigReader) -> Model:
    """Image classifier: the class token is scored."""
    hidden = config.count("hidden_size")
    rows, columns = _patches(config, 16)
    tokens = rows * columns + 1
    shape = {"tokens_per_sample": tokens}
    embedding = PatchEmbedding(**shape, patch_values=_patch_values(config, 16), num_positions=tokens, class_token=True)
    heads, width = config.count("num_attention_heads"), config.count("intermediate_size")
    block = _encoder_block(config, hidden, heads, width, config.flag("qkv_bias", True)).model_copy(update=shape)
    head = Head(**shape, vocab_size=config.num_labels(), norm=Norm.LAYER, bias=True, pooled=True)
    return stack(config, hidden, [embedding, *[block] * config.num_layers("num_hidden_layers"), head], None)


def swin(config: ConfigReader) -> Model:
    """Image classifier in stages: after each but the last, four tokens become one of twice the width."""
    rows, columns = _patches(config, 4)
    depths, heads = config.counts("depths"), config.counts("num_heads")
    if len(depths) != len(heads):
        raise config.wrong("num_heads", f"must have one entry for each of the {len(depths)} stages, has {len(heads)}")
    hidden = config.count("embed_dim")
    tokens = rows * columns
    layers: list[AnyLayer] = [
        PatchEmbedding(
            hidden_size=hidden,
            tokens_per_sample=tokens,
            patch_values=_patch_values(config, 4),
            num_positions=tokens if config.flag("use_absolute_embeddings", False) else 0,
            norm=Norm.LAYER,
        )
    ]
    for stage, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
        if stage:
            rows, columns, hidden = _half(config, rows), _half(config, columns), 2 * hidden
            layers.append(
                Merging(hidden_size=hidden, tokens_per_sample=rows * columns, input_size=hidden // 2, merged_tokens=4)
            )
        layers += [_swin_block(config, hidden, num_heads, (rows, columns))] * depth
    shape = {"hidden_size": hidden, "tokens_per_sample": rows * columns}
    layers.append(Head(**shape, vocab_size=config.num_labels(), norm=Norm.LAYER, bias=True, pooled=True))
    return stack(config, hidden, layers, None)


def _swin_block(config: ConfigReader, hidden: int, heads: int, resolution: tuple[int, int]) -> Block:
    side = config.count("window_size", 7)
    window = min(side, *resolution)
    if any(length % window for length in resolution):
        raise config.wrong("window_size", f"must divide the {resolution[0]} x {resolution[1]} tokens of every stage")
    width = int(config.ratio("mlp_ratio", 4.0) * hidden)
    block = _encoder_block(config, hidden, heads, width, config.flag("qkv_bias", True))
    attention = block.attention.model_copy(update={"window": window**2, "position_buckets": (2 * side - 1) ** 2})
    shape = {"hidden_size": hidden, "tokens_per_sample": resolution[0] * resolution[1]}
    return block.model_copy(update={**shape, "attention": attention})


def _half(config: ConfigReader, length: int) -> int:
    if length % 2:
        raise config.wrong("image_size", f"must leave an even number of tokens to merge in each stage, not {length}")
    return length // 2


def _patches(config: ConfigReader, patch_default: int) -> tuple[int, int]:
    """(rows, columns) of patches."""
    (height, width), (high, wide) = config.sides("image_size", 224), config.sides("patch_size", patch_default)
    if height % high or width % wide:
        raise config.wrong("image_size", f"must be a multiple of patch_size ({high} x {wide}), got {height} x {width}")
    return height // high, width // wide


def _patch_values(config: ConfigReader, patch_default: int) -> int:
    high, wide = config.sides("patch_size", patch_default)
    return high * wide * config.count("num_channels", 3)


def _encoder_block(config: ConfigReader, hidden: int, heads: int, width: int, qkv_bias: bool = True) -> Block:
    """LayerNorm, biases, every token sees every other."""
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=config.multiple("hidden_size", hidden, "num_attention_heads", heads),
        causal=False,
        qkv_bias=qkv_bias,
        output_bias=True,
    )
    feed_forward = DenseFeedForward(width=width, gated=False, bias=True)
    return Block(attention=attention, feed_forward=feed_forward, norm=Norm.LAYER)


def t5(config: ConfigReader) -> Model:
    """Encoder-decoder; one matrix embeds what both read."""
    activation = config.content.get("feed_forward_proj", "relu")
    if activation not in ("relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"):
        raise config.wrong("feed_forward_proj", f"must be relu, gelu, or one of them with gated-, got {activation!r}")
    network = DenseFeedForward(
        width=config.count("d_ff"), gated=activation.startswith("gated-"), relu=activation == "relu"
    )
    encoder, decoder = _stack_sizes(config, None)
    return _encoder_decoder(config, [network] * encoder, [network] * decoder)


def switch_transformers(config: ConfigReader) -> Model:
    """T5 with experts, one for each token, in every so manieth block of encoder and decoder."""
    width = config.count("d_ff")
    relu = config.content.get("dense_act_fn", "relu") == "relu"
    network = DenseFeedForward(width=width, gated=False, relu=relu)
    experts = MoeFeedForward(
        num_experts=config.count("num_experts", 8),
        top_k=1,
        expert_width=width,
        gated=False,
        relu=relu,
        router_bias=config.flag("router_bias", False),
    )

    def networks(layers: int, sparse_key: str) -> list[FeedForward]:
        sparse = config.index(sparse_key, 3)
        if sparse > layers:
            raise config.wrong(sparse_key, f"must not exceed the {layers} blocks, got {sparse}")
        # As the library has it: with no sparse block asked for, the step is the number of layers.
        step = layers // sparse if sparse else layers
        return [experts if step == 1 or number % step == 1 else network for number in range(layers)]

    encoder, decoder = _stack_sizes(config, 12)
    return _encoder_decoder(
        config, networks(encoder, "num_sparse_encoder_layers"), networks(decoder, "num_sparse_decoder_layers")
    )


def _stack_sizes(config: ConfigReader, decoder: int | None) -> tuple[int, int]:
    """Blocks of (encoder, decoder); `decoder`: the library's default, None: as many as the encoder has."""
    encoder = config.num_layers("num_layers")
    found = config.optional_count("num_decoder_layers", decoder) or encoder
    if encoder + found > MAX_LAYERS - 3:
        raise config.wrong("num_decoder_layers", f"must leave at most {MAX_LAYERS - 3} blocks in all")
    return encoder, found


def _encoder_decoder(config: ConfigReader, encoder: Sequence[FeedForward], decoder: Sequence[FeedForward]) -> Model:
    """The first block of each stack has the learned biases by relative position, and the others use them."""
    heads, vocab_size = config.count("num_heads"), config.count("vocab_size")
    buckets = config.count("relative_attention_num_buckets", 32)
    cross = GroupedQueryAttention(num_heads=heads, num_kv_heads=heads, head_dim=config.count("d_kv"), causal=False)

    def attention(number: int, causal: bool) -> GroupedQueryAttention:
        return cross.model_copy(update={"causal": causal, "position_buckets": 0 if number else buckets})

    layers: list[AnyLayer] = [Embedding(vocab_size=vocab_size, tokens_per_sample="encoder")]
    layers += [
        Block(attention=attention(number, False), feed_forward=network, tokens_per_sample="encoder")
        for number, network in enumerate(encoder)
    ]
    layers.append(EncoderEnd())
    layers += [
        Block(attention=attention(number, True), cross_attention=cross, feed_forward=network)
        for number, network in enumerate(decoder)
    ]
    layers.append(Head(vocab_size=vocab_size, tied=config.flag("tie_word_embeddings", True)))
    return stack(config, config.count("d_model"), layers, None)
