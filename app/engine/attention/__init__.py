"""Attention over a prefix tree, for every decoder that uses transformers' attention interface.

A batch's tree is one packed row (see `prefix_tree`). Token q attends to token k exactly if k is on q's path, at or before
q, and inside the layer's sliding window. transformers calls the function in `interface`; a *backend* computes it: `cpu`
with SDPA in blocks, `cuda` with flex_attention.
"""
