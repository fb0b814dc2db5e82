"""The loop schedule -> run -> commit, and the scheduler that decides each batch."""
