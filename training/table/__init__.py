"""The paper's tables beside ours: `python -m training.table 1`.

layout      a table's rows, columns and notes, and other methods' figures, from training/recipes/tableN/layout.json
scores      the scores of runs, from scores.json files or from one committed record
cells       assigns runs to cells
markdown    the table as Markdown
runs        trains and scores missing runs, as subprocesses
plot        the table as a bar chart
"""
