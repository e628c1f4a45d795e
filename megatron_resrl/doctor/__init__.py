"""Looks at the machines of a job before the job runs: facts are gathered, rules judge them."""
