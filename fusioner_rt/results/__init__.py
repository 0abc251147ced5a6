"""`Segmentation` and its output forms.

segmentation  labels, masks, scores; saving to a file
instances     connected parts of words
polygons      outlines along the edges of pixels, with holes; key_holes makes one ring of them for formats without
steadiness    the labels of a video kept from flickering; scene_cuts tells where one scene ends
overlay       the picture with coloured masks, in the colours of colours.py, and the legend of legend.py
coco          COCO annotations, with masks as rle.py encodes them; coco_document makes one file of many results
label_me      LabelMe's files
yolo          label files of YOLO's segmentation task
"""
