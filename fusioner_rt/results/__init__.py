"""`Segmentation` and its output forms.

segmentation  labels, masks, scores; saving to a file
overlay       the picture with coloured masks and a legend, in the colours of colours.py
coco          COCO annotations, with masks as rle.py encodes them
"""
