"""Attention over a prefix tree, for every decoder that uses transformers' attention interface.

A batch's tree is one packed row (see `prefix_tree`). Token q attends to token k exactly when k is on q's path, at or before
it, and inside the layer's sliding window. `interface` is the function that transformers calls; a *backend* computes it:
`cpu` by SDPA in blocks, `cuda` by flex_attention.
"""
