"""The paper's tables beside ours: `python -m training.table 1`.

layout      a table's rows, columns and notes, and other methods' figures, from training/recipes/tableN/layout.json
scores      what runs have scored: from scores.json files, or from one committed record
cells       which run fills which cell
markdown    the table as text
runs        trains and scores what is missing, as subprocesses
plot        a bar chart of the same figures
"""
