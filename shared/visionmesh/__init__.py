"""The one library that the services of visionmesh share."""
