package org.gridcpr;

/** What the library says went wrong. */
public final class GridCprException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private final int code;

    GridCprException(int code, String message) {
        super(message);
        this.code = code;
    }

    /** The negative number of gridcpr.h, GRIDCPR_E_*. */
    public int code() {
        return code;
    }
}
