package org.gridcpr;

/**
 * A generation of a checkpoint.
 *
 * @param number its number, from 1
 * @param timeNs when writing began, nanoseconds since the epoch
 * @param bytes length of all its files
 * @param lifetime seconds for which it is kept, where that was set for this one; else 0
 * @param state whether it can be used
 * @param parts parts that are there
 * @param ranks parts that there have to be
 * @param needs how many other generations it needs
 */
public record Generation(
        long number, long timeNs, long bytes, long lifetime, State state, int parts, int ranks, int needs) {
    /** Whether a generation can be used. */
    public enum State {
        /** Parts are missing: it is being written, or its writer died. */
        INCOMPLETE,
        /** All parts are there. */
        COMPLETE,
        /** It says that it is complete, and parts are missing or cannot be read. */
        DAMAGED
    }
}
