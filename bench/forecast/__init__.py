"""Forecasts of a plan: rows, judge cost, stage time, compute, memory."""
