"""Running a service: owners, time limits of stops, pending calls, objectives, the heap of a serving process."""
