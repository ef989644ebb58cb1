"""When may the result of one search answer another wording of it? `make bench-search`; what it found is in README.md.

A documentation search over Python's own standard library (corpus.py) is asked by words and by meaning (retrieval.py).
Information needs are taken from the documents and varied by rules (needs.py, rewording.py): rewordings that mean the
same, and near misses that mean something else. For each pair the results are compared (overlap.py, pairs.py), and a
real ToolCache answers some of them from the others (reuse.py).

Covered: English, one tool, one state, single edits of a known kind and one mix of them.
Not covered: people's own words. A need borrows the words of the document it comes from, so the document is easy to
find, and results change less between wordings than they would for a question that misses the vocabulary. A search by
meaning whose model is not the cache's own: here both are one, which flatters the cosine.
"""
