"""Commands of `fusioner-rt` that are a room of their own, and what they share; the short ones are in ../cli.py.

segment          pictures and words to overlays, masks and label files
fleet            the same on Ray, to Parquet files: segment --ray
run_record       which pictures of a segment run are done, for --resume
words            the cached words, and word vectors as one file
serve            the HTTP service of ../serve
session_options  the options of commands that open a session
terminal         errors, notes and a progress bar, on stderr
"""
