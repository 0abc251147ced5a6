"""Words to vectors (paper 3.1.1).

spellings  texts split into words, and words freed from quotes, bullets and articles
languages  words that are not English, as far as that can be told
parse      words as users give them, cleaned and checked: words, groups, background words
arguments  those of a command line
owners     labels of words to labels of their groups, and thresholds of words
templates  the sentences that a word is put into
tokenizer  those sentences to token ids
encoder    all of it: words to vectors
turns      a lock in the order of coming, for the text graph
cache      vectors kept in memory and on disk; the least recently used go
vectors_file  many of them as one file, which processes share read-only
"""
