"""Trains reward models on rated groups: one LoRA adapter and a head per rating, on packed rows. Part of `reward-service train`."""
