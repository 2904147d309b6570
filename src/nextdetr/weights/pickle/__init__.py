"""The security boundary: files of ``torch.save`` are read without running anything; only the reader imports this."""
