"""Pairs: DPO on success and failure, ETO beside experts."""
