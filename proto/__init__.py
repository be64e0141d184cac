"""The wire: ``recommender.proto`` (package ``recserve.v1``) and the code that ``make proto`` makes of it."""
