"""What an operator needs to run the jobs on a cluster: see README.md in this folder."""
