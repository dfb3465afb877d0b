"""Working through a manifest. In: planned runs. Out: run directories, each trained by one worker under a lease."""
