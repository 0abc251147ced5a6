"""Words to vectors (paper 3.1.1).

parse      words as users give them, cleaned and checked
templates  the sentences that a word is put into
tokenizer  those sentences to token ids
encoder    all of it: words to vectors
cache      vectors kept in memory and on disk; the least recently used go
"""
