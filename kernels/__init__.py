"""The mask head's kernels and the readable definition they are held to.

reference  what the mask head computes, in torch: low-resolution score and Gram maps, then any output size
"""
