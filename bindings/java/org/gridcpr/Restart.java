package org.gridcpr;

/**
 * The newest restart of a program.
 *
 * @param times how often it was restarted
 * @param generation number of the checkpoint that it goes on from, as callbacks were told
 * @param image identifier of the image
 * @param job name of the job
 */
public record Restart(int times, long generation, String image, String job) {}
