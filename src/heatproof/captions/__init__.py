"""How good is a caption? BLEU, ROUGE-L, CIDEr, METEOR and CHAIR in plain Python, without Java and without torch.

Every text is words split at spaces, so captions and references must be tokenised alike first: ``tokens`` has two ways. What has
no value is NaN, never 0. BERTScore and CLIPScore need a net: ``metrics.bert_score`` and ``metrics.clip_score``.
"""
