//! Close codes and the only mapping from a reason to a code (protocol section 5.3).
