"""What a plan will take: rows, judge cost, stage time, compute, memory."""
