"""Exercise 06.4: the transformer block of Stable Diffusion, from the library's layers.

Three times x + f(norm(x)), each x being what the one before gave: with f self-attention, then
cross-attention to the context, then the feed-forward network. The context is taken as it is.
"""


def transformer_block(x, context, block):
    """x (N, T, D), context (N, M, C), Tensors; returns a Tensor (N, T, D).

    `block` owns the layers, which are called like functions:
        block.norm1(x), block.norm2(x), block.norm3(x)    layer normalisations
        block.attn1(x)                                    self-attention
        block.attn2(x, context)                           cross-attention: x asks, context answers
        block.ff(x)                                       feed-forward, with GEGLU
    """
    # About 3 lines, and a return.
    raise NotImplementedError
