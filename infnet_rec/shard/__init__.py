"""Names that launch scripts of earlier versions call.

Start elsewhere: what they stand for is in `launcher`.
"""
