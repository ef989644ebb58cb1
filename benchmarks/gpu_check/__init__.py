"""Does the trainer run on this machine's GPU, and how near does it come to what the chip can do?"""
