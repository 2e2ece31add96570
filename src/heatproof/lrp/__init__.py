"""Layer-wise relevance propagation: rules, composites, batch-norm folding; decoders of captioners.

Relevance is carried as ``g`` with ``R = x * g`` at every tensor x: sums, concatenations, mean pools, max pools
and ReLUs then need no rule of their own (autograd splits g as LRP splits R), and only layers with weights get a
modified backward pass.
"""
