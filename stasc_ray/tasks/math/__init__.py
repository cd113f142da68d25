"""Mathematical answers: from the text to values that can be compared exactly. Used by `math_grader`."""
