"""From a recipe to a job on a cluster: layout, submission, supervision, and what a job needs to know of
Slurm."""
