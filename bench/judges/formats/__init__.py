"""Reads and writes files of AlpacaEval, FastChat and Arena-Hard, and computes their official numbers."""
