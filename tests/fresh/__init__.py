"""Follow a newcomer's steps on machines without Vulcan: new roots of Debian."""
