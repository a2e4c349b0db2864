"""The routes of other reward servers, one file per dialect. Trainers and clients written for them work unchanged."""
