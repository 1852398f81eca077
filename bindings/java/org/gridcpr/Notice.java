package org.gridcpr;

/**
 * What a callback is told.
 *
 * @param event what happens
 * @param failed with {@link Event#CONTINUE}: there is no checkpoint after all
 * @param restarts how often the program was restarted
 * @param checkpoint number of the checkpoint, the same before and after it
 * @param reason with {@link Event#TOLD}: what has happened; else empty
 */
public record Notice(Event event, boolean failed, int restarts, long checkpoint, String reason) {
    /** What happens. */
    public enum Event {
        /** A checkpoint is about to be taken. */
        BEFORE,
        /** The program goes on after it. */
        CONTINUE,
        /** The program goes on from an image. */
        RESTART,
        /** Something has happened, and the program goes on as before. */
        TOLD
    }
}
