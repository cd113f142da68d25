"""What is asked, how it is worded and how it is graded; pure."""
