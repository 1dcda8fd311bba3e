"""A language model over bytes: a decoder-only transformer."""

import jax
import jax.numpy as jnp
from flax import nnx

# Number of different bytes.
BYTES = 256


class LanguageModel(nnx.Module):
    """Decoder-only transformer: norms before attention and dense layers, learned positions, tied embeddings.

    The dense layers have squared ReLUs (So et al., "Primer", 2021), which cost less on a CPU than GELUs. Between the
    layers a batch is one matrix of a row a byte: XLA writes down transposes of arrays of three axes for the gradients.

    Args:
      width: width of the embeddings, a quarter of that of the hidden layers.
      blocks: number of blocks.
      heads: number of attention heads, which divides `width`.
      context: bytes of a sequence.
      rngs: generator of the initial weights.
    """

    def __init__(self, width: int, blocks: int, heads: int = 2, context: int = 128, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(BYTES, width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Param(small(rngs.params(), (context, width)))
        self.blocks = nnx.List(_Block(width, heads, rngs) for _ in range(blocks))
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps bytes, integers `[batch, length]`, to the logits of the next ones, `[batch, length, 256]`."""
        batch, length = text.shape
        x = (self.embedding(text) + self.positions[:length]).reshape(batch * length, -1)
        for block in self.blocks:
            x = block(x, batch)
        return self.embedding.attend(self.norm(x)).reshape(batch, length, BYTES)


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(2))
        self.inputs = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.outputs = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, batch: int) -> jax.Array:
        rows, width = x.shape
        inputs = self.inputs(self.norms[0](x)).reshape(batch, rows // batch, 3, self.heads, width // self.heads)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(inputs, 2, 0), is_causal=True)
        x = x + self.outputs(attended.reshape(rows, width))
        return x + self.down(jnp.square(nnx.relu(self.up(self.norms[1](x)))))
