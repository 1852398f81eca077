package org.gridcpr;

/** What the library says went wrong. */
public final class GridCprException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    /** The number. */
    private final int code;

    GridCprException(int code, String message) {
        super(message);
        this.code = code;
    }

    /**
     * The negative number of gridcpr.h, GRIDCPR_E_*.
     *
     * @return the number
     */
    public int code() {
        return code;
    }
}
