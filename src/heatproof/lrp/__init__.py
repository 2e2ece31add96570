"""Layer-wise relevance propagation: rules, composites, batch-norm folding; decoders of captioners.

``rescale`` is DeepLIFT's rule, on a twin in the same manner.

Relevance is carried as ``g`` with ``R = x * g`` at every tensor x: sums, concatenations, mean pools, max pools
and ReLUs then need no rule of their own (autograd splits g as LRP splits R), and only layers with weights get a
modified backward pass.
"""
