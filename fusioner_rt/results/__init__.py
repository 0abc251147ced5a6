"""`Segmentation` and its output forms.

segmentation  labels, masks, scores; saving to a file
overlay       the picture with coloured masks, in the colours of colours.py, and the legend of legend.py
coco          COCO annotations, with masks as rle.py encodes them
"""
